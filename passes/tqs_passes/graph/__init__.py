"""Facts about a graph: scopes, data flow, readers, patterns."""
