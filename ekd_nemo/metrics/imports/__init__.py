"""Foreign records become run directories: the earlier framework's folders and plain power logs."""
