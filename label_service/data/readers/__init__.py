"""The sources that `prepare` takes: one module for each form, each yielding batches of images with their labels.

A reader decides nothing about order, split or size; `prepare` does. Packages that only a source needs are imported when
that source is read, so that the service runs without them.
"""
