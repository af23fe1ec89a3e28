"""PostgreSQL is the truth: tables, migrations, and every statement that Darkroom sends. Gateway and scheduler only.

Functions take an open `Connection` and never commit, so that a caller decides what is one transaction. In an event
loop they run through `AsyncConnection.run_sync`. Locks are taken in one order, which keeps transactions from waiting on
each other in a ring: originals by hash, batches by id, images, and last the ledger's shard.
"""
