"""Mail watchers: mailboxes in, events on their owners' topics out."""
