"""A teacher's outputs on disk: formats, writer, reader, and the source that trains from it."""
