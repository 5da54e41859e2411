"""Decides: the model, the formats, the plans. Opens, sleeps, logs and reads no clock."""
