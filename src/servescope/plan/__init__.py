"""Predictions for planning, one question a file: pure functions of settings that return structs.

`answers.answer` asks them all; `calibrate` fits constants to measured runs. Words for people are in
`report/plan.py`.
"""
