"""The sandbox: a program that sees, reaches and uses only what it is given. Linux only; knows nothing of kernels."""
