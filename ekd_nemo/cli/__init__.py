"""The command line `ekd`: one Typer module per command group, each imported when it is asked for."""
