"""Notifications: events, their messages in the formats of receivers, and delivery to webhooks."""
