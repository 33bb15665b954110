"""Fuzzing: what comes from a client is a packet, a documented error, or too little; nothing else, ever."""
