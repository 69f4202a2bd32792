"""The daemon at a site: it only dials out, obeys what its hub signed, and owns a queue and its sandboxes.

Here lives everything that runs at a site. What hub and spoke must agree on is `shared`; nothing here knows `hub`.
"""
