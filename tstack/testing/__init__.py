"""Servers that misbehave on purpose, for tests of whatever has to live with such servers. Nothing here is part of a service.

`python -m tstack.testing.chaosimap` is an IMAP server with mailboxes in memory that, seeded and so that it can be played again,
does to its clients what servers in the field have done to theirs.
"""
