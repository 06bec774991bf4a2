"""Where rows come from: feeds kept running, outages written down, files imported exactly once.

Everything leaves through the SDK's writer; nothing here opens a file of the service.
"""
