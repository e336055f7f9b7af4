"""What the commands of the command line do, as functions: `convert`, `verify`, `bench`, `latency`."""
