//! Just enough of JSON Schema to hold what is written against `schemas/manifest-1.json`; a word of the schema that is
//! not known here is a panic, so that nothing of it is passed over.

use serde_json::Value;

/// The published schema.
pub(super) fn published() -> Value {
    let text = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/schemas/manifest-1.json"));
    serde_json::from_str(text).unwrap()
}

/// What of `value` is not as the schema says, with its place.
pub(super) fn faults(value: &Value) -> Vec<String> {
    let schema = published();
    let mut found = Vec::new();
    check(&schema, &schema, ("$", value), &mut found);
    found
}

fn check(root: &Value, schema: &Value, (place, value): (&str, &Value), found: &mut Vec<String>) {
    for (word, rule) in schema.as_object().unwrap() {
        let count = |value: &Value| value.as_u64().unwrap_or(u64::MAX);
        let right = match word.as_str() {
            "$schema" | "$defs" | "title" | "description" => true,
            "$ref" => {
                let name = rule.as_str().unwrap().strip_prefix("#/$defs/").unwrap();
                check(root, &root["$defs"][name], (place, value), found);
                true
            }
            "type" => match rule.as_str().unwrap() {
                "object" => value.is_object(),
                "array" => value.is_array(),
                "string" => value.is_string(),
                "integer" => value.is_u64(),
                "null" => value.is_null(),
                other => panic!("the type {other} is not known"),
            },
            "const" => value == rule,
            "enum" => rule.as_array().unwrap().contains(value),
            "minimum" => value.as_u64().is_none_or(|number| number >= count(rule)),
            "maximum" => value.as_u64().is_none_or(|number| number <= count(rule)),
            "maxLength" => value.as_str().is_none_or(|text| text.len() as u64 <= count(rule)),
            "minItems" => value.as_array().is_none_or(|items| items.len() as u64 >= count(rule)),
            "pattern" => value.as_str().is_none_or(|text| is_like(rule.as_str().unwrap(), text)),
            "required" => {
                let names = rule.as_array().unwrap().iter();
                names.into_iter().all(|name| value.get(name.as_str().unwrap()).is_some())
            }
            "properties" => {
                for (name, rule) in rule.as_object().unwrap() {
                    if let Some(value) = value.get(name) {
                        check(root, rule, (&format!("{place}.{name}"), value), found);
                    }
                }
                true
            }
            "items" => {
                for (at, value) in value.as_array().into_iter().flatten().enumerate() {
                    check(root, rule, (&format!("{place}[{at}]"), value), found);
                }
                true
            }
            "anyOf" => rule.as_array().unwrap().iter().any(|rule| {
                let mut found = Vec::new();
                check(root, rule, (place, value), &mut found);
                found.is_empty()
            }),
            other => panic!("the schema's word {other} is not known"),
        };
        if !right {
            found.push(format!("{place}: {word} {rule}"));
        }
    }
}

fn is_like(pattern: &str, text: &str) -> bool {
    let is_hex = text.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
    match pattern {
        "^[0-9a-f]{64}$" => is_hex && text.len() == 64,
        "^([0-9a-f]{2})+$" => is_hex && !text.is_empty() && text.len().is_multiple_of(2),
        other => panic!("the pattern {other} is not known"),
    }
}
