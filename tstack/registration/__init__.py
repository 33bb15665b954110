"""treg: the HTTP service that gives a device its name, password and certificate."""
