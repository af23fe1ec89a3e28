"""The gRPC face. Inside of it `import grpc` is the library: imports are absolute."""
