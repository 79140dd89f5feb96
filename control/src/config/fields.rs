//! One section against its specification: every name is known, nothing stands twice, values have their types.

use std::collections::HashMap;

use super::error::{Issues, Pos};
use super::lexer::Value;
use super::schema::{self, SectionSpec, Support};
use super::tree::Section;

/// The settings of a section, possibly written in several places, by name.
pub(super) struct Fields<'a> {
    /// Where the section begins; for what is missing.
    pub(super) at: Pos,
    values: HashMap<&'a str, &'a Value>,
    /// Names in the order of the files.
    order: Vec<&'a str>,
}

impl<'a> Fields<'a> {
    /// Checks the settings and sections of `parts`, which together are one section, against `spec`.
    pub(super) fn check(parts: &[&'a Section], spec: &SectionSpec, issues: &mut Issues) -> Self {
        let at = parts.first().map_or(Pos { file: 0, line: 0, column: 0 }, |part| part.at);
        let mut fields = Self { at, values: HashMap::new(), order: Vec::new() };
        for part in parts {
            let mut seen: HashMap<&str, Pos> = HashMap::new();
            for setting in &part.settings {
                let name = setting.name.as_str();
                let supported = match schema::support(spec.settings, name) {
                    None => {
                        unknown(spec, name, "option", setting.at, issues);
                        continue;
                    }
                    Some(supported) => supported,
                };
                if let Some(first) = seen.insert(name, setting.at) {
                    let place = issues.place(first);
                    issues
                        .push(setting.at, format!("option '{name}' is set twice; the first time in {place}"));
                }
                match supported {
                    Support::Absent => {
                        issues.push(setting.at, format!("option '{name}' is not available in this version"));
                    }
                    Support::Only(values) if !values.contains(&setting.value.text.as_str()) => {
                        let (found, only) = (&*setting.value.text, values[0]);
                        let message = format!(
                            "'{name} = {found}' is not available in this version; expected '{name} = {only}'"
                        );
                        issues.push(setting.value.at, message);
                    }
                    Support::Only(_) => {}
                    Support::Here => {
                        if setting.value.text.is_empty() {
                            issues.push(
                                setting.value.at,
                                format!("found no value for option '{name}'; expected one"),
                            );
                        } else {
                            // A later file overrides, as in swanctl.conf.
                            if fields.values.insert(name, &setting.value).is_none() {
                                fields.order.push(name);
                            }
                        }
                    }
                }
            }
            for section in &part.sections {
                match schema::support(spec.sections, &section.name) {
                    None => unknown(spec, &section.name, "section", section.at, issues),
                    Some(Support::Here) => {}
                    Some(_) => issues.push(
                        section.at,
                        format!("section '{}' is not available in this version", section.name),
                    ),
                }
            }
        }
        fields
    }

    /// The value of an option, as it stands.
    pub(super) fn raw(&self, name: &str) -> Option<&'a Value> {
        self.values.get(name).copied()
    }

    /// The text of an option; empty if it is not set.
    pub(super) fn text(&self, name: &str) -> &'a str {
        self.raw(name).map_or("", |value| &value.text)
    }

    /// Where the option's value stands, or else where the section begins.
    pub(super) fn place(&self, name: &str) -> Pos {
        self.raw(name).map_or(self.at, |value| value.at)
    }

    /// The option's value, if it is set and right.
    pub(super) fn get<T>(
        &self,
        name: &str,
        issues: &mut Issues,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Option<T> {
        let value = self.raw(name)?;
        match parse(&value.text) {
            Ok(parsed) => Some(parsed),
            Err(expected) => {
                issues.push(value.at, format!("found '{}' for '{name}'; expected {expected}", &*value.text));
                None
            }
        }
    }

    /// Sets `into` when the option is set and right.
    pub(super) fn set<T>(
        &self,
        name: &str,
        into: &mut T,
        issues: &mut Issues,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) {
        if let Some(value) = self.get(name, issues, parse) {
            *into = value;
        }
    }

    /// The elements of a comma-separated option, if it is set and all of them are right.
    pub(super) fn list<T>(
        &self,
        name: &str,
        issues: &mut Issues,
        parse: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Vec<T>> {
        let value = self.raw(name)?;
        let elements = value.elements();
        if elements.is_empty() {
            issues.push(value.at, format!("found an empty list for '{name}'"));
            return None;
        }
        let mut out = Vec::with_capacity(elements.len());
        let count = elements.len();
        for (element, at) in elements {
            match parse(element) {
                Ok(parsed) => out.push(parsed),
                Err(expected) => {
                    issues.push(at, format!("found '{element}' for '{name}'; expected {expected}"))
                }
            }
        }
        (out.len() == count).then_some(out)
    }

    /// All options whose name begins with `stem`, in the order of the files.
    pub(super) fn with_stem(&self, stem: &str) -> Vec<(&'a str, &'a Value)> {
        self.order
            .iter()
            .filter(|name| name.starts_with(stem))
            .map(|name| (*name, self.values[name]))
            .collect()
    }
}

fn unknown(spec: &SectionSpec, name: &str, kind: &str, at: Pos, issues: &mut Issues) {
    if spec.what == schema::SECRET.what {
        let names: Vec<String> =
            spec.settings.iter().map(|(name, _)| format!("'{}'", name.trim_end_matches('*'))).collect();
        // Such a name may be the rest of a key that lacks its quotes, so it is not repeated.
        return issues
            .push(at, format!("found an unknown {kind} in {}; expected {}", spec.what, names.join(" or ")));
    }
    // The same name of the other kind is a likelier slip than any misspelling.
    let (other, hint) = if kind == "option" {
        (spec.sections, format!("'{name}' is a section: write '{name} {{ ... }}'"))
    } else {
        (spec.settings, format!("'{name}' is an option: write '{name} = ...'"))
    };
    let exact = |known: &str| known.trim_end_matches('*') == name;
    let hint = if other.iter().any(|(known, s)| exact(known) && *s != Support::Absent) {
        format!("; {hint}")
    } else if let Some(near) = schema::nearest(spec, name) {
        format!("; did you mean '{near}'?")
    } else {
        String::new()
    };
    issues.push(at, format!("found unknown {kind} '{name}' in {}{hint}", spec.what));
}

/// A word out of a fixed choice.
pub(super) fn choice<T: Copy>(available: &[(&str, T)], absent: &[&str], text: &str) -> Result<T, String> {
    if let Some((_, value)) = available.iter().find(|(word, _)| *word == text) {
        return Ok(*value);
    }
    let words: Vec<_> = available.iter().map(|(word, _)| *word).collect();
    let missing = if absent.contains(&text) { "; this one is not available in this version" } else { "" };
    Err(format!("one of {}{missing}", words.join(", ")))
}
