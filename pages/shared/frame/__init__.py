"""The frame of every page: navigation, session, plan, charts, escaping."""
