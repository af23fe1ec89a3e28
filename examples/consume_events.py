"""Prints every event of Darkroom as it happens: `python consume_events.py amqp://guest:guest@localhost:5672//`.

The queue is durable and its messages are acknowledged when they are done with, so nothing is missed while this program
is not running. An event may come twice: its id says so. Needs `pip install kombu`.
"""

import sys

from kombu import Connection, Exchange, Queue

exchange = Exchange("darkroom.events", type="topic", durable=True)
queue = Queue("events-example", exchange, routing_key="image.*", durable=True)  # `#`: batch.completed too
newest = 0

with Connection(sys.argv[1]) as connection, connection.SimpleQueue(queue) as events:
    while True:
        message = events.get(block=True)
        event = message.payload
        if event.get("id", 0) > newest:  # keep it in a database where it must survive a restart; hints have none
            newest = event["id"]
            print(newest, event["type"], event.get("image_id"), event.get("problem", {}).get("title"), flush=True)
        message.ack()
