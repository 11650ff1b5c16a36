"""Campaigns: long trials of the service, with kills, races, load and forgeries, that print what they found.

Each is a program, `python -m tests.campaigns.NAME`, and exits with 1 if a promise was broken.
The test suite runs short versions of them; docs/measurements.md records the results of long runs.
"""
