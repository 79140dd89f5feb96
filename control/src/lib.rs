//! mobikex
