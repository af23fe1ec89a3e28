"""What the services say to each other: messages, tasks, events, blob keys. Imports pydantic and nothing else."""
