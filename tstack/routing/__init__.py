"""Sessions and fan-out: who gets what. Pure: it leaves bytes on channels, `broker/` carries them."""
