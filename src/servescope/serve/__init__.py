"""Servers of our own, on loopback: the simulated engine, and servers with faults."""

from servescope.serve.server import Server as Server
