"""What `univip bench` measures: parts of the system on one core, each beside a reference.

One process takes one and the other in turn, so whatever else the machine does falls on both, and their ratio
can be compared between machines where images per second cannot.
"""
