"""Partners' side of the mail watchers over HTTP: the API, and the pages that their users connect mailboxes by."""
