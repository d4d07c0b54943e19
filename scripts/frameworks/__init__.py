"""Runs agent frameworks, SDKs and an evaluation harness against every family of text models."""
