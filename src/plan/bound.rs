//! A plan that was made earlier and shown to somebody: a rebuild bound to it changes no other disk.

use serde_json::Value;

use super::PlanSummary;
use crate::error::{Error, ErrorKind};
use crate::request::BoundPlan;
use crate::verify::Digest;

/// What is compared: everything that was looked at, and what will be done with it.
const BOUND: [&str; 7] =
    ["image_files", "target", "target_kind", "target_disk", "size_after", "gpt", "data_disks"];
/// What may differ without a disk's being another: the kernel's counters begin anew when a disk is attached.
const FREE: &str = "writes";
/// What another machine may change of a data disk that it shares.
const FREE_WHERE_SHAREABLE: [&str; 4] = ["digest", "files", "head_digest", "ptuuid"];

/// Why a plan binds nothing, or something else.
#[derive(Debug, thiserror::Error)]
enum BoundFault {
    #[error("the plan is not one that `reimage plan --json` wrote")]
    NoPlan(#[source] serde_json::Error),
    #[error("the plan has no digest, or is not what its digest was made of")]
    Edited,
    #[error("{place} was {planned} when the plan was made, and is {found}")]
    Differs { place: String, planned: String, found: String },
}

impl BoundPlan {
    /// Takes the document that `reimage plan --json` printed, or a serialised [`PlanSummary`].
    ///
    /// ```
    /// let error = reimage::BoundPlan::from_json("{}").unwrap_err();
    /// assert_eq!(error.kind(), reimage::ErrorKind::Usage);
    /// ```
    ///
    /// # Errors
    ///
    /// When it is none, or its digest is not that of the rest.
    pub fn from_json(text: &str) -> Result<Self, Error> {
        let refuse = |fault| {
            Error::new(ErrorKind::Usage, fault).hint_that("make the plan anew: reimage plan --json … > FILE")
        };
        let document: Value =
            serde_json::from_str(text).map_err(|error| refuse(BoundFault::NoPlan(error)))?;
        let said = document.get("digest").and_then(Value::as_str).unwrap_or_default();
        if said.is_empty() || said != digest_of(&document) {
            return Err(refuse(BoundFault::Edited));
        }
        Ok(Self { file: None, document })
    }

    /// The same, read from `file`, which must not lie on the disk that is written.
    #[must_use]
    pub fn from_file(self, file: impl Into<std::path::PathBuf>) -> Self {
        Self { file: Some(file.into()), ..self }
    }

    /// The plan that was shown.
    #[must_use]
    pub fn of(plan: &PlanSummary) -> Self {
        Self { file: None, document: serde_json::to_value(plan).expect("a plan is plain data") }
    }

    /// Every difference between what was looked at then and now.
    pub(super) fn differences(&self, now: &PlanSummary) -> Vec<Error> {
        let now = Self::of(now).document;
        let mut found = Vec::new();
        for key in BOUND {
            compare(key, (&self.document[key], &now[key]), Free::Counters, &mut found);
        }
        let about = |fault| {
            Error::new(ErrorKind::Identity, fault)
                .hint_that("find out what changed since the plan was made; then make a new plan")
        };
        found.into_iter().map(about).collect()
    }
}

/// The BLAKE3 of the document without its digest, as serde_json writes it: keys in order, nothing between them.
pub(super) fn digest_of(document: &Value) -> String {
    let mut document = document.clone();
    if let Value::Object(fields) = &mut document {
        fields.remove("digest");
    }
    Digest::of(document.to_string().as_bytes()).to_string()
}

/// What of a value may differ.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Free {
    Counters,
    SharedContent,
}

fn compare(place: &str, (planned, found): (&Value, &Value), free: Free, differences: &mut Vec<BoundFault>) {
    match (planned, found) {
        (Value::Object(left), Value::Object(right)) => {
            let shared = left.get("shareable") == Some(&Value::Bool(true));
            let free = if shared { Free::SharedContent } else { free };
            for key in left.keys().chain(right.keys().filter(|key| !left.contains_key(*key))) {
                let is_free = key == FREE
                    || free == Free::SharedContent && FREE_WHERE_SHAREABLE.contains(&key.as_str());
                if !is_free {
                    let pair =
                        (left.get(key).unwrap_or(&Value::Null), right.get(key).unwrap_or(&Value::Null));
                    compare(&format!("{place}.{key}"), pair, free, differences);
                }
            }
        }
        (Value::Array(left), Value::Array(right)) if left.len() == right.len() => {
            for (number, pair) in left.iter().zip(right).enumerate() {
                compare(&format!("{place}[{number}]"), pair, free, differences);
            }
        }
        _ if planned == found => {}
        _ => differences.push(BoundFault::Differs {
            place: place.to_owned(),
            planned: planned.to_string(),
            found: found.to_string(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_difference_is_told_with_its_place_but_for_what_may_differ() {
        let disk = json!({"writes": 4, "shareable": true, "digest": "a", "facts": {"size": 9}});
        let planned = json!({"size": 1, "data_disks": [disk]});
        let check = |found: Value, expected: &[&str]| {
            let mut differences = Vec::new();
            compare("plan", (&planned, &found), Free::Counters, &mut differences);
            let places = differences.iter().map(|fault| match fault {
                BoundFault::Differs { place, .. } => place.as_str(),
                _ => "",
            });
            assert_eq!(places.collect::<Vec<_>>(), expected, "{found}");
        };
        check(planned.clone(), &[]);
        let mut other = planned.clone();
        other["data_disks"][0]["writes"] = json!(5);
        other["data_disks"][0]["digest"] = json!("b");
        check(other.clone(), &[]);
        other["data_disks"][0]["facts"]["size"] = json!(8);
        check(other.clone(), &["plan.data_disks[0].facts.size"]);
        other["size"] = json!(null);
        other["more"] = json!(7);
        check(other, &["plan.data_disks[0].facts.size", "plan.size", "plan.more"]);
        let mut other = planned.clone();
        other["data_disks"][0]["shareable"] = json!(false);
        check(other, &["plan.data_disks[0].shareable"]);
        check(json!({"size": 1, "data_disks": []}), &["plan.data_disks"]);
    }

    #[test]
    fn a_plan_that_was_edited_is_refused() {
        let mut document = json!({"target": "/dev/vdb", "size_after": u64::MAX});
        document["digest"] = json!(digest_of(&document));
        BoundPlan::from_json(&serde_json::to_string_pretty(&document).unwrap()).unwrap();
        document["target"] = json!("/dev/vdc");
        let error = BoundPlan::from_json(&document.to_string()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Usage);
        assert!(BoundPlan::from_json("{").is_err());
    }
}
