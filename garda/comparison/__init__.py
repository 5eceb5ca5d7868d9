"""Several runs of one sequence side by side: asked for, found in a folder, measured, tabulated and drawn.

    rows ──┬── request
           └── measures ──┬── tables
                          └── figures

Nothing here learns or reads a scan: everything is made from the files of finished runs.
"""
