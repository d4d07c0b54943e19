"""The ingress router: reads `model`, finds its application, relays bytes both ways.

Knows Ray only through `truthgpt_serve.cluster.controller`; knows no family and no engine.
"""
