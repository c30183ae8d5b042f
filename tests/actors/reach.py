"""Connects to a port of this machine, or dies of it."""

import socket
import sys

socket.create_connection(("127.0.0.1", int(sys.argv[1])), 5).close()
