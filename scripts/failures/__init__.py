"""Failures seen in public reports, their causes and remedies, and how a log is searched for them."""
