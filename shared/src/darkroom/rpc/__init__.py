"""Interfaces for remote procedure calls, one package for each version."""
