"""Where tconsume sends what it reads: one sink a file."""
