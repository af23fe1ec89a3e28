"""Traces: what a photo's spans are called, how they are made, and how they leave the process."""
