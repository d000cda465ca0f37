//go:build !go1.21

package main

import "google.golang.org/grpc"

// Debian 12 has Go 1.19 and grpc-go 1.33, which is older than credentials/insecure.
func plaintext() grpc.DialOption { return grpc.WithInsecure() }
