"""The gRPC interface: `darkroom.proto`, and what `make proto` generates from it."""
