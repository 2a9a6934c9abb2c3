"""The companions' commands for `safegraft`: thin skins that read arguments, call this package and print.

Found through the entry-point group `safegraft.commands`. To list them imports nothing but click; torch, transformers
and TRL come when a command runs.
"""
