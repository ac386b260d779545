//! Claims about the MCP language, at its doors.
