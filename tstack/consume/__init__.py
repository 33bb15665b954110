"""What becomes of messages: `pump` carries them from the client to a sink; one sink a file."""
