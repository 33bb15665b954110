"""Keys, certificates, the certificate authority and revocation."""
