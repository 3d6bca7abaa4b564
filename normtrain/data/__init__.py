"""What the tasks share about data: reading files and the Hub, caching, batch order, loaders."""
