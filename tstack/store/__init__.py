"""The key-value store that holds users and revocations: one interface, etcd or embedded."""
