use super::{lines, stdout, zmlx};

#[test]
fn patterns_are_listed_with_what_they_fuse_and_where() {
    let output = zmlx(&["patterns", "--json"]);
    assert_eq!(output.status.code(), Some(0));
    let lines = lines(&output);
    let rows = lines.last().unwrap()["patterns"].as_array().unwrap();
    let row = rows.iter().find(|row| row["name"] == "moe_mlp").unwrap();
    assert_eq!(row["default_on"], serde_json::json!(["cpu", "gpu"]));
    let text = stdout(&zmlx(&["patterns"]));
    assert_eq!(text.lines().count(), rows.len());
    for row in rows {
        let (name, about) = (row["name"].as_str().unwrap(), row["about"].as_str().unwrap());
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        assert!(line.contains(about), "{line}");
        // every listed name is one that --patch takes
        let output = zmlx(&["inspect", "models/demo", "--patch", name]);
        assert_eq!(output.status.code(), Some(0), "{name}");
    }
}
