"""What is used of other libraries beyond their public interfaces, one module for each library.

tests/test_adapters.py says what broke when a new version of one of them changes it.
"""
