"""The IMAP protocol as a client speaks it, pure: bytes in, responses out (RFC 3501, RFC 9051).

`tokens` cuts the stream into responses and these into values, `responses` gives them types, `commands` writes commands,
`session` is the state between the two. Nothing here touches a socket or a clock: `mail/connection.py` does.
"""
