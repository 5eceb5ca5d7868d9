"""What is measured, and how; not part of the tests."""
