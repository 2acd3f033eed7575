//! Damage to JSON that is JSON afterwards, so that what comes behind the syntax is reached.

use serde_json::{Value, json};

use crate::random::Random;

/// A document in which one to three values are others, are gone, or are there twice.
pub(super) fn damaged_json(document: &Value, random: &mut Random) -> Value {
    let mut document = document.clone();
    for _ in 0..=random.below(3) {
        let mut places = Vec::new();
        collect(&document, String::new(), &mut places);
        let place = places[random.place(places.len())].clone();
        let other = document.pointer(&places[random.place(places.len())]).cloned().unwrap_or_default();
        change(&mut document, &place, other, random);
    }
    document
}

/// The document without one of its values, and with each of these in its place, one after the other.
pub(super) fn each_value_otherwise(document: &Value) -> Vec<Value> {
    let numbers = [0, 1, 511, 1 << 31, 1 << 40, u64::MAX >> 1, u64::MAX].map(|number| json!(number));
    let others =
        [Value::Null, json!(true), json!(-1), json!(1.5), json!(""), json!("x"), json!([]), json!({})];
    let mut places = Vec::new();
    collect(document, String::new(), &mut places);
    let mut all = Vec::new();
    for place in places {
        for other in numbers.iter().chain(&others) {
            let mut changed = document.clone();
            *changed.pointer_mut(&place).expect("it was found there") = other.clone();
            all.push(changed);
        }
        let (parent, key) = place.rsplit_once('/').expect("a place begins with a slash");
        let mut changed = document.clone();
        if let Some(Value::Object(fields)) = changed.pointer_mut(parent) {
            fields.remove(key);
            all.push(changed);
        }
    }
    all
}

/// Every value's place, but for the document's own.
fn collect(value: &Value, at: String, places: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                let key = key.replace('~', "~0").replace('/', "~1");
                collect(value, format!("{at}/{key}"), places);
            }
        }
        Value::Array(items) => {
            items
                .iter()
                .enumerate()
                .for_each(|(index, value)| collect(value, format!("{at}/{index}"), places));
        }
        _ => {}
    }
    if !at.is_empty() {
        places.push(at);
    }
}

fn change(document: &mut Value, place: &str, other: Value, random: &mut Random) {
    if random.once_in(5) {
        let (parent, key) = place.rsplit_once('/').expect("a place begins with a slash");
        match document.pointer_mut(parent) {
            Some(Value::Object(fields)) => drop(fields.remove(key)),
            Some(Value::Array(items)) => {
                let index = key.parse().unwrap_or(0_usize).min(items.len() - 1);
                let item = items.remove(index);
                if random.once_in(2) {
                    items.extend([item.clone(), item]);
                }
            }
            _ => {}
        }
        return;
    }
    let Some(value) = document.pointer_mut(place) else { return };
    *value = match (&*value, random.below(4)) {
        (_, 0) => other,
        (Value::Number(number), 1) => json!(number.as_u64().unwrap_or(0).wrapping_add(1)),
        (Value::Number(_), _) => {
            json!(random.pick(&[0, 1, 511, 1 << 20, 1 << 31, 1 << 32, 1 << 40, 1 << 63, u64::MAX]))
        }
        (Value::String(text), 1) => json!(text.chars().rev().collect::<String>()),
        (Value::String(text), 2) => {
            json!(text.chars().take(random.place(text.len() + 1)).collect::<String>())
        }
        (Value::String(text), _) => {
            let mut letters: Vec<_> = text.chars().collect();
            if !letters.is_empty() {
                let at = random.place(letters.len());
                letters[at] = random.pick(&['0', 'f', 'g', '/', '\u{9b}', '\0', '🔑']);
            }
            json!(letters.into_iter().collect::<String>())
        }
        _ => {
            let others = [Value::Null, json!(true), json!(-1), json!(1.5), json!(""), json!([])];
            others[random.place(others.len())].clone()
        }
    };
}
