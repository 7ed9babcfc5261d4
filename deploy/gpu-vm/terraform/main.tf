# A group of GPU machines that run the farm's workers. Machines start from an image with NVIDIA's driver and install the release; they
# hold no data that is lost with them.

locals {
  tags        = { Name = var.name, Project = "farm" }
  hook        = "${var.name}-drain"
  release     = regex("^s3://(?P<bucket>[^/]+)/(?P<key>.+)$", var.release_uri)
  folders     = var.checkpoints_uri == "" ? [] : [regex("^s3://(?P<bucket>[^/]+)/(?P<key>.+)$", var.checkpoints_uri)]
  s3          = "arn:${data.aws_partition.here.partition}:s3:::"
  s3_policies = "${path.module}/../../s3-policy"
  # Only what is set: the parameter's own settings stay as they are.
  settings = {
    FARM_CHECKPOINT_DIR      = "/opt/farm/checkpoints"
    FARM_CHECKPOINT          = join(",", var.checkpoints)
    FARM_PRELOAD             = var.preload
    FARM_WEIGHTS_CACHE_BYTES = var.weights_cache_bytes == null ? "" : format("%d", var.weights_cache_bytes)
  }
  # A group that serves one checkpoint alone follows what that one needs.
  alone = length(var.checkpoints) == 1 ? var.checkpoints : []
}

data "aws_ssm_parameter" "ami" {
  name = var.ami_parameter
}

data "aws_caller_identity" "me" {}

data "aws_partition" "here" {}

data "aws_region" "here" {}

# --- Rights of a machine. ---

resource "aws_iam_role" "worker" {
  name = var.name
  assume_role_policy = jsonencode({
    Version   = "2012-10-17"
    Statement = [{ Effect = "Allow", Action = "sts:AssumeRole", Principal = { Service = "ec2.amazonaws.com" } }]
  })
  tags = local.tags
}

resource "aws_iam_role_policy" "pictures" {
  name   = "pictures"
  role   = aws_iam_role.worker.id
  policy = templatefile("${local.s3_policies}/worker.json", { BUCKET = var.bucket })
}

resource "aws_iam_role_policy" "itself" {
  name = "itself"
  role = aws_iam_role.worker.id
  policy = jsonencode({
    Version = "2012-10-17"
    Statement = concat([
      {
        Sid    = "ReadReleaseAndCheckpoints"
        Effect = "Allow"
        Action = "s3:GetObject"
        Resource = concat(
          ["${local.s3}${local.release.bucket}/${local.release.key}"],
          [for folder in local.folders : "${local.s3}${folder.bucket}/${folder.key}*"],
        )
      },
      {
        Sid      = "ReadSettings"
        Effect   = "Allow"
        Action   = "ssm:GetParameter"
        Resource = "arn:${data.aws_partition.here.partition}:ssm:${data.aws_region.here.name}:${data.aws_caller_identity.me.account_id}:parameter${var.settings_parameter}"
      },
      {
        Sid      = "SayThatItHasDrained"
        Effect   = "Allow"
        Action   = "autoscaling:CompleteLifecycleAction"
        Resource = "arn:${data.aws_partition.here.partition}:autoscaling:${data.aws_region.here.name}:${data.aws_caller_identity.me.account_id}:autoScalingGroup:*:autoScalingGroupName/${var.name}"
      },
      ], [
      for folder in local.folders : {
        Sid       = "ListCheckpoints"
        Effect    = "Allow"
        Action    = "s3:ListBucket"
        Resource  = "${local.s3}${folder.bucket}"
        Condition = { StringLike = { "s3:prefix" = "${folder.key}*" } }
      }
    ])
  })
}

resource "aws_iam_instance_profile" "worker" {
  name = var.name
  role = aws_iam_role.worker.name
}

resource "aws_security_group" "worker" {
  name        = var.name
  description = "Gpu workers: they call out; only Prometheus calls in."
  vpc_id      = var.vpc_id
  tags        = local.tags

  dynamic "ingress" {
    for_each = length(var.metrics_cidr_blocks) > 0 ? [1] : []
    content {
      description = "Prometheus"
      from_port   = 9460
      to_port     = 9469
      protocol    = "tcp"
      cidr_blocks = var.metrics_cidr_blocks
    }
  }

  egress {
    description = "Postgres, Redis, S3 and package indexes"
    from_port   = 0
    to_port     = 0
    protocol    = "-1"
    cidr_blocks = ["0.0.0.0/0"]
  }
}

# --- The machines. ---

resource "aws_launch_template" "worker" {
  name                   = var.name
  image_id               = data.aws_ssm_parameter.ami.value
  update_default_version = true
  vpc_security_group_ids = [aws_security_group.worker.id]
  tags                   = local.tags

  user_data = base64encode(templatefile("${path.module}/cloud-init.yaml.tftpl", {
    checkpoints_uri    = var.checkpoints_uri
    group              = var.name
    hook               = local.hook
    region             = data.aws_region.here.name
    release_uri        = var.release_uri
    settings           = join(" ", [for name, value in local.settings : "${name}=${value}" if value != ""])
    settings_parameter = var.settings_parameter
  }))

  iam_instance_profile {
    arn = aws_iam_instance_profile.worker.arn
  }

  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
    instance_metadata_tags      = "disabled"
  }

  block_device_mappings {
    device_name = "/dev/sda1"
    ebs {
      volume_size           = var.disk_gb
      volume_type           = "gp3"
      encrypted             = "true"
      delete_on_termination = "true"
    }
  }

  tag_specifications {
    resource_type = "instance"
    tags          = local.tags
  }
}

resource "aws_autoscaling_group" "worker" {
  name                      = var.name
  min_size                  = var.min_size
  max_size                  = var.max_size
  vpc_zone_identifier       = var.subnet_ids
  health_check_type         = "EC2"
  health_check_grace_period = 600
  default_instance_warmup   = 300
  # Replace a spot machine at risk before its interruption.
  capacity_rebalance = true
  # The scaling policies below compare these metrics with the desired number.
  enabled_metrics = ["GroupDesiredCapacity", "GroupInServiceInstances"]

  mixed_instances_policy {
    instances_distribution {
      on_demand_base_capacity                  = var.on_demand_base
      on_demand_percentage_above_base_capacity = var.on_demand_percentage
      spot_allocation_strategy                 = "price-capacity-optimized"
    }
    launch_template {
      launch_template_specification {
        launch_template_id = aws_launch_template.worker.id
        version            = aws_launch_template.worker.latest_version
      }
      dynamic "override" {
        for_each = var.instance_types
        content {
          instance_type = override.value
        }
      }
    }
  }

  # For a new release, replace the machines a few at a time, each after its drain.
  instance_refresh {
    strategy = "Rolling"
    preferences {
      min_healthy_percentage = 80
    }
  }

  dynamic "tag" {
    for_each = local.tags
    content {
      key                 = tag.key
      value               = tag.value
      propagate_at_launch = true
    }
  }

  lifecycle {
    # The scaling policies below set it.
    ignore_changes = [desired_capacity]
  }
}

resource "aws_autoscaling_lifecycle_hook" "drain" {
  name                   = local.hook
  autoscaling_group_name = aws_autoscaling_group.worker.name
  lifecycle_transition   = "autoscaling:EC2_INSTANCE_TERMINATING"
  heartbeat_timeout      = var.drain_seconds
  # A machine that does not report its drain is terminated anyway: its leases run out and other workers take its jobs.
  default_result = "CONTINUE"
}

# --- Scaling. ---

resource "aws_autoscaling_policy" "wanted" {
  name                   = "${var.name}-wanted"
  autoscaling_group_name = aws_autoscaling_group.worker.name
  policy_type            = "TargetTrackingScaling"

  target_tracking_configuration {
    # The metric is desired workers per running worker: the target is 1.
    target_value = 1

    customized_metric_specification {
      metrics {
        id          = "ratio"
        expression  = "IF(machines > 0, wanted / (machines * ${var.gpus_per_instance}), wanted)"
        label       = "Desired workers per running worker"
        return_data = true
      }
      metrics {
        id          = "wanted"
        return_data = false
        metric_stat {
          stat = "Maximum"
          metric {
            namespace   = "RenderFarm"
            metric_name = "DesiredWorkers"
            dynamic "dimensions" {
              for_each = local.alone
              content {
                name  = "Checkpoint"
                value = dimensions.value
              }
            }
          }
        }
      }
      metrics {
        id          = "machines"
        return_data = false
        metric_stat {
          stat = "Average"
          metric {
            namespace   = "AWS/AutoScaling"
            metric_name = "GroupInServiceInstances"
            dimensions {
              name  = "AutoScalingGroupName"
              value = var.name
            }
          }
        }
      }
    }
  }
}

# Target tracking multiplies the present number of machines, and zero stays zero: the first one is started by itself.
resource "aws_autoscaling_policy" "first" {
  name                   = "${var.name}-first"
  autoscaling_group_name = aws_autoscaling_group.worker.name
  policy_type            = "StepScaling"
  adjustment_type        = "ExactCapacity"

  step_adjustment {
    metric_interval_lower_bound = 0
    scaling_adjustment          = 1
  }
}

resource "aws_cloudwatch_metric_alarm" "first" {
  alarm_name          = "${var.name}-first"
  alarm_description   = "Work waits and the group has no machine."
  comparison_operator = "GreaterThanOrEqualToThreshold"
  threshold           = 1
  evaluation_periods  = 1
  treat_missing_data  = "notBreaching"
  alarm_actions       = [aws_autoscaling_policy.first.arn]
  tags                = local.tags

  metric_query {
    id          = "waits"
    expression  = "IF(FILL(machines, 0) > 0, 0, wanted)"
    label       = "Desired workers of a group without machines"
    return_data = true
  }
  metric_query {
    id = "wanted"
    metric {
      namespace   = "RenderFarm"
      metric_name = "DesiredWorkers"
      dimensions  = { for name in local.alone : "Checkpoint" => name }
      period      = 60
      stat        = "Maximum"
    }
  }
  metric_query {
    id = "machines"
    metric {
      namespace   = "AWS/AutoScaling"
      metric_name = "GroupDesiredCapacity"
      dimensions  = { AutoScalingGroupName = var.name }
      period      = 60
      stat        = "Maximum"
    }
  }
}
