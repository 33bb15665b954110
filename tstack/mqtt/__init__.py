"""The protocol: control packets, properties, reason codes, topics. Pure: bytes in, values out, and back."""
