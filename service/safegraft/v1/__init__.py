"""Messages and stubs generated from protos/safegraft/v1 by `make protos`. Never edited by hand."""
