"""One run from the first image to the report: folder, stages, active loop, evaluation, report.

May import: acquisition, config, errors, images, learning, options, oracle, profiles, records.
Must not import: anything of the label service; only the command line imports this package.
"""
